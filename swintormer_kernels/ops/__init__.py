"""One file for each op: its public function, its checks, its cost, and which backends serve it."""
