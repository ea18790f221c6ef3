"""The `sdflow` command: one small file a noun. Importing it opens nothing and loads no heavy library."""
