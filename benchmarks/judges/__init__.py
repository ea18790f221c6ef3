"""Networks of other people that judge what this project makes. Fetched by whoever runs a benchmark, never
part of the product; `faceres` alone may also be used in training, and therefore judges nothing."""
