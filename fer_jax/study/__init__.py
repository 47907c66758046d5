"""Many runs: what is varied, which are to do, and what their records say together."""
