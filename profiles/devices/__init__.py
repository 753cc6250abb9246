"""What is known of boards, one TOML file each; see `edge.profiles.boards`."""
