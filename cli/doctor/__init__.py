"""``taskrunner doctor``: checks each thing that is needed here, and says how to mend it.

Nothing is changed, nothing is left behind, and no check is waited for longer than its time limit.
"""
