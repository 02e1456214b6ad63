"""Many runs: a sweep's queue, and what run folders say, as tables."""
