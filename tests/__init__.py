"""Tests. A package of its own, because torch-fidelity installs another one under the same name."""
