"""What looks at private images and is therefore no attack: audits of a release."""
