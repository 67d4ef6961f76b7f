"""Publishing an output on the Hub: its files (`parcel`), permission to publish (`check`), and the upload (`send`)."""
