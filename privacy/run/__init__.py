"""What a run is: its manifest, plan, roster and policy, each signed or held against what is signed."""
