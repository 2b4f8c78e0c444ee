"""What `recipes.benchmark` puts together: dialogues, the arms that train them, how they are measured, the report."""
