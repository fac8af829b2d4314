"""Imported once, by the server that workers are forked from: they start with everything at hand and nothing in use."""

import gc

from loom import lazy

YOUNG_OBJECTS = 100_000
"""So many objects make Python look for garbage: building a graph makes millions of them, and few cycles."""

for _name in ("tensorflow", "keras", "mlflow", "layers", "loom.train", "loom.callbacks", "tuning.trial"):
    lazy.load(_name)

gc.collect()
gc.freeze()  # what is imported is no garbage, and need not be looked at after every trial
gc.set_threshold(YOUNG_OBJECTS)
