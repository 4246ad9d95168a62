"""How a model is trained: the scaling recipe, the engine, the loop, its checkpoints and its logs."""
