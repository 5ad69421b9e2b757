"""`python -m cloister`, and the `cloister` command."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing to clean up until `main` takes over

from cloister.cli import main

if __name__ == "__main__":
    main()
