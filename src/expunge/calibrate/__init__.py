"""Which metric may be believed on this data: twins that know and twins that do not, and metrics that must tell them."""
