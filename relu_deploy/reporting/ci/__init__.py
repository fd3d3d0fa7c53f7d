"""Reports for continuous integration: JUnit XML, a Markdown summary, and error lines of GitHub Actions."""
