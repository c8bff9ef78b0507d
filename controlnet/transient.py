"""The mark of errors whose cause may pass."""


class Transient(Exception):
    """The same request may succeed later: a host did not answer, or a disk was full. Mixed into other classes."""
