"""The paper and beyond: conditional flow on w+, semantic encoder, training, editing, evaluation.

Source: Li et al., "Semantic Latent Decomposition with Normalizing Flows for Face Editing", arXiv 2309.05314.
"""
