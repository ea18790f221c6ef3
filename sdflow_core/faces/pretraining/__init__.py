"""Training compact models for a domain of aligned images: data, classifiers, generator + encoder, prior."""
