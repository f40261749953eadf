/** A database that can't be used as it is; the message says what to do. */
export class DatabaseError extends Error {}

/** Another process has the database. */
export class DatabaseInUse extends DatabaseError {}
