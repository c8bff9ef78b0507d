"""From control maps and a prompt to pictures: the pipelines, what they call at each step, and the safety checker."""
