"""One file per op: the public function, the checks of its arguments, its cost and the predicates of its backends."""
