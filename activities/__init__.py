"""Everything that touches the world: the activities, the backends behind one contract, processes, git, HTTP."""
