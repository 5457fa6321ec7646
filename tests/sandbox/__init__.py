"""Tests of the stand-in Stripe itself: it must behave as Stripe is documented to, errors included."""
