"""Publishing an output on the Hub: what goes (`parcel`), whether it may (`check`), and sending it (`send`)."""
