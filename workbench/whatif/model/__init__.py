"""A model of servers: what steps cost, their simulation, and a closed form beside it."""
