"""Conformance suites and parity tools: what our tests run, and what a plug-in can run on its own objectives.

Nothing here is imported by the library. `objectives` checks every registered objective against the contract;
`parity` loads golden cases and compares values and gradients.
"""
