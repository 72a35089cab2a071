"""The networks, one file for each family; `shiftjax.registry` creates them by name."""
