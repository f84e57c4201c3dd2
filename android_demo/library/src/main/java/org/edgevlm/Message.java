package org.edgevlm;

import java.util.ArrayList;
import java.util.Collections;
import java.util.List;

/** One message of a conversation: pictures first, then the text. */
final class Message {
    final String role;
    final String text;
    final List<TilePlan> pictures;

    Message(String role, String text, List<TilePlan> pictures) {
        this.role = role;
        this.text = text;
        this.pictures = Collections.unmodifiableList(new ArrayList<>(pictures));
    }
}
