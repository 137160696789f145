"""One file per op: what it computes, its checks, and the door through which a backend is chosen."""
