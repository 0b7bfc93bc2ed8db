"""The demo: a whole line on one machine, and an honest account of what it did."""
