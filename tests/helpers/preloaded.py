"""Imported once, by the server that the tests' commands are forked from."""

from loom import lazy

for _name in ("tensorflow", "keras", "mlflow", "pandas", "layers", "loom.train", "loom.callbacks", "loom.export"):
    lazy.load(_name)
