"""The run behind `paper_claim_validation`: what to measure in the time there is, and what came out.

Here recipes and verdicts meet, and an account of each claim is written for the page.
"""
