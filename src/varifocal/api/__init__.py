"""The Python API: what the command line does, as functions and objects.

Each function calls what the verb of its name calls. `import varifocal` gives them lazily.
"""
