"""How good a model is: datasets in MVTec layout, and figures."""
