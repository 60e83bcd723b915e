"""What ``taskrunner bench`` measures, on a stack, a home and a repository of its own."""
