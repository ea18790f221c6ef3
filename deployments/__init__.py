"""What runs where and when. No logic: `prefect.yaml` is read by `sdflow deploy`."""
