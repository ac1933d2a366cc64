"""What every room needs: whole files and buckets, and the wording of messages."""
