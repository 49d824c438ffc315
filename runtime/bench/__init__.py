"""How fast a model runs here, stage by stage."""
