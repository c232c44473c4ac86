"""Published claims as data, the checks that a comparison is fair, and verdicts with a reason."""
