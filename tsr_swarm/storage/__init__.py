"""Everything that is kept on disk: checkpoints, published rounds, the voter's journal, states that are served.

Every file is whole or not there after a crash, and verified when it is read; damage is one sentence that says what to
do. No sockets, and no decisions about rounds. Begin with ``run_folder``, which starts or resumes a run from its folder.
"""
