"""The project and its peers on the same work, compared within one run."""
