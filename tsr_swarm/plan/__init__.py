"""What a run would cost before anybody starts it: bytes, memory and time on a link, for it and for the baselines.

Begin with report.py, which puts all figures together; costs.py has their types. own_costs.py counts this run's real
slots, baseline_costs.py the published methods by formula, search.py proposes settings for a link, and text.py makes
the tables. Nothing is trained, and no model is allocated.
"""
