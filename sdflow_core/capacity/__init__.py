"""How long, how much and how dear, before anything runs: rates, a formula, and a simulation."""
