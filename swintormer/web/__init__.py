"""The local page, `swintormer web`: a server on this machine, a queue, and hand-written HTML, CSS and JavaScript."""
