"""`goldline simulate season`: three ways to keep a model over the same months, on drawn parts."""
