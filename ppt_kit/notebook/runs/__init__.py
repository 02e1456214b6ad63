"""Many runs in a notebook: compared in tables and figures for a paper, picked from a list."""
