"""The demonstration: a real model, a real document, a restart. `kvstore.demo.main.run` does it."""
