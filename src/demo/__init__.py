"""The demo's data set: real photographs that an installed package ships, cut into crops."""
