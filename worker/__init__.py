"""How it happens: web, queue, database, Stripe and the command line. The only place with drivers, clocks and I/O."""
