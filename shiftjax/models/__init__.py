"""The networks, one file a family; `shiftjax.registry` knows them by name."""
