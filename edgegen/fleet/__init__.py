"""A fleet: boards that measure bundles for one host, over Dask's scheduler and workers.

host: profile --fleet  --tls-->  hub (scheduler)  <--tls--  board: devices join (a worker, "pi5")

`address`  where a hub is, and what may be spoken there
`keys`     the certificates of mutual TLS, one folder for each machine
`hub`      the scheduler
`join`     the worker of a board
`cache`    bundles on a board, by their hash
`board`    what a board does when it is asked
`line`     one device, as the host sees it
`client`   asking, all at once

A bundle is data: it is checked and given to an engine, never executed. A key is not: Dask sends
pickles, so whoever holds a key of the fleet can run code on every machine of it.
"""
