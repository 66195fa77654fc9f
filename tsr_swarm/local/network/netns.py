"""Network namespaces with a TUN device each, by system calls. A script of the standard library alone.

    netns.py PATH COMMAND...   runs COMMAND in the namespace at PATH

A namespace made here has no name. It lives as long as a process is in it or holds it open, and its device with it, so
that nothing can be left behind, whichever way those processes end.
"""

import ctypes
import os
import socket
import struct
import sys
from fcntl import ioctl

DEVICE = b"lab0"
MASK = "255.255.0.0"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFTXQLEN = 0x8914, 0x8916, 0x891C, 0x8943
_IFF_UP = 0x1
_QUEUE = 2000  # packets between the kernel and the router


def make_node(address: str) -> tuple[int, int]:
    """Move this process into a new namespace whose only way out is a TUN device with ``address``.

    Returns two non-blocking file descriptors: one keeps the namespace, the other is the device's other end. Raises
    OSError with one sentence.
    """
    _call("unshare", _CLONE_NEWNET)
    try:
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE, _IFF_TUN | _IFF_NO_PI))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
            ioctl(control, _SIOCSIFTXQLEN, struct.pack("16si20x", DEVICE, _QUEUE))
            ioctl(control, _SIOCSIFADDR, _with_address(address))
            ioctl(control, _SIOCSIFNETMASK, _with_address(MASK))
            ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", DEVICE, _IFF_UP))
        return os.open("/proc/self/ns/net", os.O_RDONLY), tun
    except OSError as error:
        raise OSError(error.errno, f"A TUN device cannot be made ({error.strerror}).") from error


def enter(path: str) -> None:
    """Move this process into the namespace at ``path``. Raises OSError."""
    namespace = os.open(path, os.O_RDONLY)
    try:
        _call("setns", namespace, _CLONE_NEWNET)
    finally:
        os.close(namespace)


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, name):
        raise OSError(0, "Network namespaces need Linux.")
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Network namespaces need root ({os.strerror(number)}).")


def _with_address(address: str) -> bytes:
    return struct.pack("16sHH4s16x", DEVICE, socket.AF_INET, 0, socket.inet_aton(address))


if __name__ == "__main__":
    enter(sys.argv[1])
    os.execv(sys.argv[2], sys.argv[2:])
