"""What a user needs beside the official SDK."""
